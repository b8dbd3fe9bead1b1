"""Can the data be trusted? Groups across splits, duplicates, and what tells the classes apart without a lung."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "groups": ["duplicate_findings", "find_duplicates", "group_findings", "sensitivity_list", "shared_groups"],
        "shortcuts": ["fact_table", "judge_shortcut", "mitigation_findings", "mitigation_table", "shortcut_findings"],
    },
)
