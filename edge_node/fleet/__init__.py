"""What makes a node a member of its fleet: its key, its durable state, its HTTP credentials."""
