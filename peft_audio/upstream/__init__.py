"""The only room that touches what PEFT, transformers and torch keep private."""
