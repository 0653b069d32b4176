"""The whole job of a recipe: what binds the stages. Nothing below imports it."""
