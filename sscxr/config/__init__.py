"""The settings of a run: `schema` has their names and types, `ranges` what they may be, `loading` reads them."""

from sscxr.config.loading import as_dict as as_dict
from sscxr.config.loading import dumps as dumps
from sscxr.config.loading import known_keys as known_keys
from sscxr.config.loading import load as load
from sscxr.config.loading import loads as loads
from sscxr.config.loading import recipe as recipe
from sscxr.config.loading import recipe_hash as recipe_hash
from sscxr.config.loading import schema as schema
from sscxr.config.loading import setting as setting
from sscxr.config.loading import split_overrides as split_overrides
from sscxr.config.loading import text_of as text_of
from sscxr.config.schema import Config as Config
from sscxr.config.schema import ConfigError as ConfigError
from sscxr.config.schema import FederationConfig as FederationConfig
from sscxr.config.schema import FinetuneConfig as FinetuneConfig
from sscxr.config.schema import ServerOptimiserConfig as ServerOptimiserConfig
