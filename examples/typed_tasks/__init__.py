"""Typed tasks: a catalogue of kinds, each with its payload, queue, priority and limits. See README.md."""
