"""What people read: Markdown and pictures, made from the JSON that is the truth."""
