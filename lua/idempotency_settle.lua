#!lua
-- Ends what idempotency_claim.lua began: the key stays bound where its request was decided, or may have been; where all that claimed it
-- were refused nothing stays.
--
-- KEYS 1 meta    hash  the books of the key's partition
--      2 record  list  the fingerprint, CLAIMED, and by how many requests, or KEPT
-- ARGV 1 fingerprint  2 '1' where the key stays bound, else '0'  3 for how long (ms)
--      4 the claim's life while requests are under way (ms)
-- Returns SETTLED | CLOSED_BOOKS
--@include lists
--@include partition
local meta, record, fingerprint, keeps, ttl, lease = KEYS[1], KEYS[2], ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
local bound = redis.call('LRANGE', record, 0, 2)
if bound[1] ~= fingerprint or bound[2] ~= 'CLAIMED' or bound[3] == 'KEPT' then return { 'SETTLED' } end
local others = tonumber(bound[3]) - 1
---- checks above, writes below -------------------------------------------------------------------------------------
if keeps then
  remember(record, fingerprint, ttl, { 'CLAIMED', 'KEPT' })
elseif others > 0 then
  remember(record, fingerprint, lease, { 'CLAIMED', whole(others) })
else
  redis.call('DEL', record)
end
return { 'SETTLED' }
