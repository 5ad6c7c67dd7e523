"""attar run: make, measure and judge what a recipe asks for."""

from __future__ import annotations

import json

from attar.cli.options import HOME, Device, Home, Language, Name, RecipeFile, Set


def run(
    recipe: RecipeFile,
    sets: Set = None,
    name: Name = None,
    home: Home = HOME,
    language: Language = "en",
    device: Device = "cpu",
) -> None:
    """Run a recipe; what is already made is not made again, so a run that was stopped goes on."""
    from attar.cli.execute import execute
    from attar.core.recipe_file import read

    overrides = [*(sets or ()), *([f"name={json.dumps(name)}"] if name is not None else ())]
    execute(read(recipe, overrides), home, language, device)
