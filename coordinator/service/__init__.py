"""The coordinator as a service: enrolment, sessions, the queue of runs and their state."""
