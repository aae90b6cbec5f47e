"""What fits where: models, accelerators, memory."""
