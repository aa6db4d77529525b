"""The parts of a Celery worker: consumer, pool, result backend, remote control, Flower."""
