#!lua flags=no-writes
-- Reads a user's newest balance changes from the outbox, where they are until Postgres has them: each names the one
-- before it, and the walk ends at the first that is gone, for that one and all before it are in Postgres.
--
-- KEYS 1 user    hash    name balance entries tail open
--      2 outbox  stream
-- ARGV 1 the most steps
-- Returns {'TAIL', '1' if the walk was cut short else '0', {field, value, ...}, ...} newest first, or USER_NOT_FOUND
local user, outbox, most = KEYS[1], KEYS[2], tonumber(ARGV[1])

local u = redis.call('HMGET', user, 'name', 'tail')
if not u[1] then return { 'USER_NOT_FOUND' } end
local reply, id = { 'TAIL', '0' }, u[2]
while id ~= '' do
  if #reply >= most + 2 then
    reply[2] = '1'
    break
  end
  local entry = redis.call('XRANGE', outbox, id, id)[1]
  if not entry then break end
  local fields = entry[2]
  reply[#reply + 1], id = fields, ''
  for i = 1, #fields, 2 do
    if fields[i] == 'prev' then id = fields[i + 1] end
  end
end
return reply
