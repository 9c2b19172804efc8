#!lua
-- Tells a far hold what became of its order, and where there is none makes sure that there never will be.
--
-- KEYS 1 meta   hash    the books of the order's home partition
--      2 order  hash
-- ARGV 1 the life of the mark (ms)
-- Returns {'VERDICT', PENDING | PAID | CANCELLED | FAILED | ABANDONED, reason or '', day of the sale or ''} or CLOSED_BOOKS
--@include lists
--@include partition
local meta, order = KEYS[1], KEYS[2]

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
local o = redis.call('HMGET', order, 'status', 'reason', 'day')
---- checks above, writes below -------------------------------------------------------------------------------------
if not o[1] then
  redis.call('HSET', order, 'status', 'ABANDONED')
  redis.call('PEXPIRE', order, ARGV[1])
end
return { 'VERDICT', o[1] or 'ABANDONED', o[2] or '', o[3] or '' }
