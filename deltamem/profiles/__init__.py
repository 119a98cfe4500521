"""Memory profiles: a named state on disk."""

from __future__ import annotations

from deltamem.profiles.file import Profile, ProfileInfo, load_profile, save_profile
from deltamem.profiles.store import ProfileStore

__all__ = ["Profile", "ProfileInfo", "ProfileStore", "load_profile", "save_profile"]
