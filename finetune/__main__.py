"""`python -m finetune`: run a command by its name, or list them."""

from finetune.cli.main import console_script

console_script()
