"""The commands behind `peft-cbpt` and the recipes: parse dataclasses, call the layers below, print."""
