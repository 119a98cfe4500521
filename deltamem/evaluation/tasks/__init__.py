"""What is asked: one module a task, each giving a `Task`."""
