"""What people look at: learning curves, and how they are drawn over several runs."""
