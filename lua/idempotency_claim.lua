#!lua
-- Binds an idempotency key to one request, where the partition that decides the request is not the key's own: so that the key
-- is refused to another request even if that one is decided elsewhere. Whoever claims says how it ended (idempotency_settle.lua); until
-- then the claim has a short life of its own.
--
-- KEYS 1 meta    hash  the books of the key's partition
--      2 record  list  the fingerprint, CLAIMED, and by how many requests, or KEPT
-- ARGV 1 fingerprint  2 the claim's life while requests are under way (ms)
-- Returns CLAIMED | KEY_REUSED | CLOSED_BOOKS
--@include lists
--@include partition
local meta, record, fingerprint, lease = KEYS[1], KEYS[2], ARGV[1], ARGV[2]

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
local bound = redis.call('LRANGE', record, 0, 2)
if #bound > 0 and bound[1] ~= fingerprint then return { 'KEY_REUSED' } end
if #bound > 0 and (bound[2] ~= 'CLAIMED' or bound[3] == 'KEPT') then return { 'CLAIMED' } end
local requests = whole(tonumber(bound[3] or 0) + 1)
---- checks above, writes below -------------------------------------------------------------------------------------
return remember(record, fingerprint, lease, { 'CLAIMED', requests })
