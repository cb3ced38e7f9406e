"""Programs compiled into a model by Tracr, whose circuits are known (Lindner et al. 2023).

build_subject()        all programs in one model of the GPT-2 class, and the heads and MLPs that each uses
grade_programs()       what a search and a session find of them, graded by node
python -m neuronaut.benchmarks.compiled.compile      compiles them anew (extra `tracr`)
"""

from .grade import NodeGrade, grade_programs, grades_to_json, table
from .model import build_subject, compiled_programs

__all__ = ["NodeGrade", "build_subject", "compiled_programs", "grade_programs", "grades_to_json", "table"]
