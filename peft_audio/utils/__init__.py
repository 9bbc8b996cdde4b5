"""Small tools that know nothing about models: checks of values, and files that are written together or not at all."""
