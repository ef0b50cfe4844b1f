"""What is wrong with a study."""

from mmsmca.errors import UserError


class StudyError(UserError):
    """A study that cannot be run. The message names file, key and remedy."""
