"""From a YAML file and overrides to a validated Config. Imports neither torch nor gymnasium."""

from pgcli.config.load import config_from_data, flat, load_config, override, shipped_configs, to_data, to_yaml
from pgcli.config.schema import Config

__all__ = ["Config", "config_from_data", "flat", "load_config", "override", "shipped_configs", "to_data", "to_yaml"]
