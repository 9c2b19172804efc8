#!lua
-- Binds an idempotency key to one request, where the partition that decides the request is not the key's own: so that the
-- key is refused to another request even if that one is decided elsewhere.
--
-- KEYS 1 meta   hash    the books of the key's partition
--      2 claim  string  the fingerprint
-- ARGV 1 fingerprint  2 the claim's life (ms)
-- Returns CLAIMED | KEY_REUSED | CLOSED_BOOKS
--@include lists
--@include books
local meta, claim = KEYS[1], KEYS[2]

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
local bound = redis.call('GET', claim)
if bound and bound ~= ARGV[1] then return { 'KEY_REUSED' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('SET', claim, ARGV[1], 'PX', ARGV[2])
return { 'CLAIMED' }
