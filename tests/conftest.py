"""Fixtures that the tests of several floors share."""

from __future__ import annotations

import pytest

from tests.training.faces import write_face_set


@pytest.fixture(scope="session")
def face_set_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sound set in insightface's layout: 120 faces of 112×112 of 12 identities, one `.rec`.

    Shared by all tests of the session: copy it before changing a byte.
    """
    path = tmp_path_factory.mktemp("faces") / "train.rec"
    write_face_set(path)
    return str(path)
