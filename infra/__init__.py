"""What stands an environment up. Imports nothing from the other folders."""
