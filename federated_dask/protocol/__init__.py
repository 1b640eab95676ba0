"""What crosses a border between institutes: messages, values, graphs. No I/O."""
