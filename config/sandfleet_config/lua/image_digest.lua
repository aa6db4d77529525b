-- The digest of the image that a job ran, as its result (Celery's record as JSON) says; nil if it
-- says none. A script includes this part by the line "-- include: image_digest".
--
-- Decoding a result of many MiB would hold up Redis. Its text cannot be mistaken: a quote in a
-- string has a backslash before it, a label's value is a string, and in an outcome the field
-- `artifacts` follows, a list.
local function find_image_digest(result)
  local digest = type(result) == 'string' and result:match('"image_digest": ?"(sha256:%x+)", ?"artifacts": ?%[')
  return digest and #digest == 71 and digest or nil
end
