"""The description of the profile is complete and consistent."""

from __future__ import annotations

import string

import pytest

from mloc_prefect.services.profile.topology import NAMES, PROFILE, ProfilePart

ORDER = [part.name for part in PROFILE]


@pytest.mark.parametrize("part", PROFILE, ids=ORDER)
def test_a_part_uses_known_names_and_needs_earlier_parts(part: ProfilePart) -> None:
    texts = [*part.arguments, *part.check, *part.environment.values()]
    named = {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}
    assert named <= set(NAMES)
    assert [needed for needed in part.after if ORDER.index(needed) >= ORDER.index(part.name)] == []


@pytest.mark.parametrize("part", PROFILE, ids=ORDER)
def test_a_part_that_serves_can_be_checked(part: ProfilePart) -> None:
    assert bool(part.port) == bool(part.ready or part.check)
    assert (part.alive is None) == (part.ready is None)
