"""What `run_recipe.py` is made of: recipes, the models and inputs they name, and the protocol they are judged by."""
