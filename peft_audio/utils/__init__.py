"""Small tools that know no model: checks of values, and files that are written together or not at all."""
