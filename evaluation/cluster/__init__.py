"""Several evaluators as one: a driver that hands out parts of what is asked, and Ray, which runs the workers."""
