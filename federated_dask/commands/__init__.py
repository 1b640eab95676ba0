"""The researcher's commands: looking around, calling functions, stubs for editors."""
