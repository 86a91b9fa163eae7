"""What measures the pack and shows it off; nothing in nodes/ or training/ imports it."""
