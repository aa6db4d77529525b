"""Files of jobs: uploads to the fleet's store, and artifacts from it."""
