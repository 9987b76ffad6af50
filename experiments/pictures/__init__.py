"""What a run and a reading look like, drawn by matplotlib."""
