"""Can the data be trusted? Groups across splits, duplicates, and what tells the classes apart without a lung."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "findings": ["AuditError", "Finding", "as_checks"],
        "groups": ["group_findings", "sensitivity_list", "shared_groups"],
        "duplicates": ["duplicate_findings", "find_duplicates"],
        "cures": ["cure_findings", "cure_table", "without_cures"],
        "shortcuts": ["BORDER_L2", "feature_table", "judge_shortcut", "shortcut_findings"],
    },
)
