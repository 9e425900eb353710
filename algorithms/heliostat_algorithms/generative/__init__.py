"""Methods that learn to make samples like those they are shown."""
