"""Images and labels: in memory, by name, in folders; and what others published about them."""
