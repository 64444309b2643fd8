"""What a person or a program can ask for, over HTTP and WebSocket."""
