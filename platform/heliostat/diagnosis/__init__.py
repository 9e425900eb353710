"""What is looked at before a run: this machine, and the places and servers that it reaches."""
