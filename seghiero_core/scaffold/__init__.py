"""New components and projects from templates."""
