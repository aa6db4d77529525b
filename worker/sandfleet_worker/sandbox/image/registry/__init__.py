"""Images from registries: skopeo's calls, what their failures mean, and pulls."""
