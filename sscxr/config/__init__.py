"""The settings of a run: `schema` has their names and types, `ranges` what they may be, `loading` reads them."""

from sscxr.config.loading import (
    as_dict,
    dumps,
    known_keys,
    load,
    loads,
    recipe,
    recipe_hash,
    schema,
    setting,
    split_overrides,
)
from sscxr.config.schema import (
    RECIPE_SECTIONS,
    AugmentConfig,
    ClassifyConfig,
    Config,
    ConfigError,
    FederationConfig,
    FinetuneConfig,
    ServerOptimiserConfig,
)

__all__ = [
    "RECIPE_SECTIONS",
    "AugmentConfig",
    "ClassifyConfig",
    "Config",
    "ConfigError",
    "FederationConfig",
    "FinetuneConfig",
    "ServerOptimiserConfig",
    "as_dict",
    "dumps",
    "known_keys",
    "load",
    "loads",
    "recipe",
    "recipe_hash",
    "schema",
    "setting",
    "split_overrides",
]
