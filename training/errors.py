"""The one exception whose text is written for the person at the graph."""


class UserError(ValueError):
    """Something the user can put right; its text says what is wrong, where, and what to do."""


class SettingError(UserError):
    """A setting that is out of its range or does not go with another one."""


class UnreadableImage(UserError):
    """A picture that cannot be read; the run can go on without it."""
