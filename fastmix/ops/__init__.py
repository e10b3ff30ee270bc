"""The operators: importing this declares them, so that every module here may refer to its own."""

from . import dispatch, library

library.load()
dispatch.select_auto()
dispatch.configure_from_environment()
