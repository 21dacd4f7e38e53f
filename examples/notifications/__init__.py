"""A notification server: schedule, cancel and deliver messages, resize images, and a report every morning."""
