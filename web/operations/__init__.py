"""Operations on a database and its model, typed and bounded: what pages and assistants may ask for.

`registry` has the table of them and `perform`, which every call goes through; `context` what a call works on. The
other modules hold the operations by what they need: `stored` the database alone, `features`, `running`, `reading` and
`patching` the model as well, `writing` leave to write.
"""
