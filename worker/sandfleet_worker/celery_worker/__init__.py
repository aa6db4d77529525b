"""The parts that exist because the worker is a Celery worker: consumer, pool, result backend, remote control, Flower."""
