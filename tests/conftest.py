"""How thoroughly hypothesis looks: `HYPOTHESIS_PROFILE=nightly ci/test` looks longer."""

import os

from hypothesis import settings

# No deadlines: a machine may be busy with other things.
settings.register_profile("ci", deadline=None)
settings.register_profile("nightly", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
