"""What a person or a test does from behind: each command is a control call and a line to type."""
