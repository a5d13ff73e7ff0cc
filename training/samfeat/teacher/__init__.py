"""What a teacher says about photographs, computed once and stored (DESIGN section 4)."""

from training.data.teacher_store import TeacherEntry, TeacherStore, borders

__all__ = ["TeacherEntry", "TeacherStore", "borders"]
