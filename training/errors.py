"""The exceptions whose text is written for the person at the graph."""


class UserError(ValueError):
    """An error the user can fix. Its text says what is wrong, where, and what to do."""


class SettingError(UserError):
    """A setting is out of range or conflicts with another one."""


class UnreadableImage(UserError):
    """A picture cannot be read. The run can continue without it."""
